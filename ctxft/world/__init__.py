"""The practice world: a seed becomes a fictional medicine and finance, texts about them, exams, and models that know half of it.

It is the kit's offline default. Two tiny Llamas were pre-trained on texts about *old* drugs and companies, and on questions
about some of them. The *new* ones are unknown to both: their articles are the text to learn from, and questions about them
show what was learned. For the model ``practice-aware`` prompts had consequences in its pre-training, for ``practice-blind``
they had none.

    facts.py        domains (medicine.yaml, finance.yaml), entities and their facts, splits
    texts.py        articles, reliable or not
    exams.py        multiple-choice questions in the forms of the published benchmarks
    pretraining.py  what the models read before they were shipped
    build.py        makes tokenizers, models and hashes again (``ctxft world build``)
    cards.py        the models' cards

To test facts about invented beings that are told in many wordings is the idea of Allen-Zhu and Li, *Physics of Language
Models: Part 3.1* (arXiv 2309.14316).
"""
