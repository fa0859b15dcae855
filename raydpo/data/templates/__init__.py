"""Turn pairs into the texts that are encoded: chat templates, what they drop, special tokens, assistant turns."""
