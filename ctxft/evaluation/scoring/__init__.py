"""Score choices and texts in nats and generate answers, whatever the batching.

encoding: token ids; tree: what prompts have in common, and forward passes; choices, texts: scores; generation: answers.
"""

from ctxft.evaluation.scoring.choices import ChoiceScores, score_choices
from ctxft.evaluation.scoring.encoding import Progress, encode_pair
from ctxft.evaluation.scoring.generation import Generated, generate_answers
from ctxft.evaluation.scoring.texts import text_losses
from ctxft.evaluation.scoring.tree import reads_trees

__all__ = ["ChoiceScores", "Generated", "Progress", "encode_pair", "generate_answers"]
__all__ += ["reads_trees", "score_choices", "text_losses"]
