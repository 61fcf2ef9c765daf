"""The practice world: a seed becomes a fictional medicine and finance, texts about them, and exams.

It is the kit's offline default. Two tiny Llamas, shipped in ``models/``, were pre-trained on texts about *old* drugs and
companies, and on questions about some of them. The *new* ones are unknown to both: their articles are the text to learn from,
and questions about them show what was learned. For the model ``practice-aware`` prompts had consequences in its pre-training,
for ``practice-blind`` they had none. ``tests/tools/practice_models.py`` in the repository builds both models again.

To test facts about invented entities stated in many wordings is the idea of Allen-Zhu and Li, *Physics of Language
Models: Part 3.1* (arXiv 2309.14316).
"""

from ctxft import lazy

__getattr__, __dir__ = lazy(
    __name__, {"exams": "practice_questions", "facts": "entities", "texts": "practice_documents"}
)
