"""TR-DPO: a reference that is synced towards the policy while that trains (Gorbatovski et al. 2024)."""
