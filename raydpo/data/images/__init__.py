"""Images of prompts: where they come from, what the model's processor makes of them, and where that is kept."""
