"""What is asked of a model to see whether it learnt."""
