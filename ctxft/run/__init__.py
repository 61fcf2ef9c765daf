"""Experiments: matched arms of one model on one corpus, trained, examined and compared in a run folder."""
