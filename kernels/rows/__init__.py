"""Operations on rows of activations."""
