"""What a run would cost on chips that are not here: compiled for them, counted, priced."""
