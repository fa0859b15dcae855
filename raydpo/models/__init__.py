"""The Hugging Face models of a run: resolving, loading, LoRA adapters, forward passes and export."""
