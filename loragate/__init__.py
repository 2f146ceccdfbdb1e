"""loragate: fine-tunes a language model with LoRA or QLoRA and releases it only through gates."""

__version__ = "0.1.0"
