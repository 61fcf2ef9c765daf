"""Experiments: matched arms of one model on one corpus, trained, evaluated and compared in a run folder."""
