"""Training: one arm of an experiment, fine-tuned with the transformers Trainer."""
