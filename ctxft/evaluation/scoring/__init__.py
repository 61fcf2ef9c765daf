"""Texts, choices and prompts go in; log-likelihoods in nats and greedy answers come out, whatever the batching.

encoding -> sharing -> passes -> choices: token ids, what prompts have in common, forward passes, scores. ``texts`` scores
whole texts, ``generation`` lets a model write its answer.
"""

from ctxft.evaluation.scoring.choices import ChoiceScores, score_choices
from ctxft.evaluation.scoring.encoding import Progress, encode_pair
from ctxft.evaluation.scoring.generation import generate_answers, parse_answer
from ctxft.evaluation.scoring.passes import reading_way
from ctxft.evaluation.scoring.texts import text_losses

__all__ = ["ChoiceScores", "Progress", "encode_pair", "generate_answers", "parse_answer"]
__all__ += ["reading_way", "score_choices", "text_losses"]
