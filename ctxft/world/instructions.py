"""Questions about the old half of the practice world flow out as instructions with answers.

They are of the kind that the practice models read in pre-training: what a model learns from them is to answer, not new facts.
Since they repeat old facts, the exam ``practice-old`` shows nothing about forgetting once they were trained on.
"""

from __future__ import annotations

from ctxft.storage import seeded
from ctxft.world.facts import ASKED, DOMAINS, WORLD_SEED, entities, load_domain


def practice_instructions() -> list[dict]:
    """Return questions about old drugs and companies with their answers, the same in every call.

    Returns:
        Dictionaries with "id", "prompt" and "response".

    Example:
        >>> sorted(practice_instructions()[0])
        ['id', 'prompt', 'response']
    """
    found = []
    for domain in DOMAINS:
        for entity in entities("old", domain)[:ASKED]:
            for attribute in load_domain(domain).attributes:
                rng = seeded(WORLD_SEED, "instruction", entity.name, attribute.name)
                question = rng.choice(attribute.questions).format(name=entity.name)
                identity = f"{entity.name.lower()}-{attribute.name}"
                found.append({"id": identity, "prompt": question, "response": entity.facts[attribute.name]})
    return found
