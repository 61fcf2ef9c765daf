"""What most users never need: hosted models, adaptive prompts, attribution, exercises, export."""
