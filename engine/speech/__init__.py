"""Speech: models whose steps become frames of sound, and what makes samples of these."""
