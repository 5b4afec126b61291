"""What one round is made of: the model, the cohort, local training, updates, verdict, score."""
