# SPDX-License-Identifier: Apache-2.0
"""The language of the demo model: sentences about distance, each with what it means in metres.

A sentence is a template around a phrase. Phrases are numbers with a unit, an adverb with an
adjective, or fixed expressions. Some phrases and templates are never trained on (`HELD_OUT_*`):
they test whether meaning is composed from words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TEMPLATES = (
    '{}', 'This is {}', 'This object is {}', 'This thing is {}', 'It is {}', 'The wall is {}',
    'The floor is {}', 'The box is {}', 'The table is {}', 'The surface is {}', 'That is {}',
    'Everything here is {}', 'A photo of something {}', 'an object {}', 'There is something {}',
    'The object in the picture is {}.', 'This is {}.', 'A surface {}', 'this patch is {}',
)
HELD_OUT_TEMPLATES = ('The thing is {}', 'There is an object {}', 'A picture of something {}')

# Adverbs: how far along the scale from the adjective's mild end (0) to its extreme end (1).
DEGREES = {
    'extremely': 1.0, 'incredibly': 1.0, 'very': 0.75, 'really': 0.75, 'quite': 0.5,
    'pretty': 0.5, 'rather': 0.4, 'fairly': 0.35, '': 0.5, 'somewhat': 0.15, 'a little': 0.0,
    'a bit': 0.0, 'slightly': 0.0,
}
# Adjectives: metres at degree 0 and at degree 1.
ADJECTIVES = {
    'close': (1.8, 0.45), 'near': (1.8, 0.45), 'nearby': (1.8, 0.45), 'close by': (1.8, 0.45),
    'close to the camera': (1.8, 0.45), 'near the camera': (1.8, 0.45),
    'far': (3.0, 9.0), 'far away': (3.0, 9.0), 'distant': (3.0, 9.0), 'remote': (3.0, 9.0),
    'far off': (3.0, 9.0), 'far from the camera': (3.0, 9.0),
}
EXPRESSIONS = {
    'giant': 0.6, 'touching the lens': 0.4, 'right in front of the camera': 0.5,
    'within reach': 0.65, "at arm's length": 0.7, 'an arm away': 0.7, 'a step away': 0.8,
    'one step away': 0.8, 'two steps away': 1.6, 'a few steps away': 2.4, 'three steps away': 2.4,
    'at a medium distance': 2.4, 'at a moderate distance': 2.4, 'not close': 2.4,
    'neither close nor far': 2.4, 'in the middle of the room': 2.4, 'not far': 1.9,
    'not far away': 1.9, 'not distant': 1.9, 'not near': 2.6, 'across the room': 4.0,
    'on the other side of the room': 4.5, 'at the far end of the room': 6.5,
    'at the end of the corridor': 8.0, 'at the end of the hallway': 8.0, 'out of reach': 2.0,
    'beyond reach': 2.0, 'tiny in the distance': 9.0, 'as far as one can see': 9.5,
    'too far to see': 9.5, 'unseen': 9.0,
}
HELD_OUT_PHRASES = (
    'very near', 'really close', 'quite close by', 'a bit near', 'pretty far', 'very distant',
    'really far away', 'a little remote', 'slightly far off', 'fairly close to the camera',
)
WORDS = {1: 'one', 2: 'two', 3: 'three', 4: 'four', 5: 'five', 6: 'six', 7: 'seven', 8: 'eight',
         9: 'nine', 10: 'ten'}
# Tenths of a metre that no sentence in training mentions.
HELD_OUT_TENTHS = (7, 13, 17, 23, 26, 34, 41, 47, 55, 68, 79)
LEAST, GREATEST = 0.4, 10.0  # metres spoken of

ROOMS = {
    'bathroom': ('bathroom', 'washroom', 'restroom'),
    'bedroom': ('bedroom', 'sleeping room', 'guest room'),
    'office': ('office', 'workplace', 'study'),
    'classroom': ('classroom', 'schoolroom', 'lecture room'),
    'corridor': ('corridor', 'hallway', 'passage'),
}
ROOM_TEMPLATES = (
    'a photo of a {}', 'This is a {}', 'a picture of a {}', 'the inside of a {}', 'a {}', '{}',
    'We are in a {}', 'This room is a {}', 'a photo of the {}.', 'an image of a {}',
)


@dataclass(frozen=True)
class Sentence:
    """A sentence about distance."""

    text: str
    metres: float


def numeric_phrases(tenths: int) -> list[str]:
    """Ways to say a distance of `tenths` tenths of a metre."""
    metres = f'{tenths / 10:g}'
    unit = 'meter' if tenths == 10 else 'meters'
    phrases = [f'{metres} {unit} away', f'{metres} m away', f'{tenths * 10} centimeters away',
               f'{metres} {unit} from the camera', f'about {metres} {unit} away',
               f'at a distance of {metres} {unit}', f'{tenths / 10:.1f} meters away',
               f'{metres} metres away']
    whole, rest = divmod(tenths, 10)
    if whole in WORDS and rest == 0:
        phrases += [f'{WORDS[whole]} {unit} away', f'{WORDS[whole]} {unit} from the camera']
    if whole in WORDS and rest == 5:
        phrases += [f'{WORDS[whole]} and a half meters away']
    return phrases


def verbal_phrases() -> dict[str, float]:
    """Every phrase without a number, with its distance in metres; the held-out ones too."""
    phrases = dict(EXPRESSIONS)
    for degree, strength in DEGREES.items():
        for adjective, (mild, extreme) in ADJECTIVES.items():
            text = f'{degree} {adjective}'.strip()
            phrases[text] = mild * (extreme / mild) ** strength
    return phrases


def training_sentences() -> list[Sentence]:
    """All sentences of the training set, in a fixed order."""
    phrases = {text: metres for text, metres in verbal_phrases().items()
               if text not in HELD_OUT_PHRASES}
    sentences = [Sentence(template.format(text), metres)
                 for text, metres in phrases.items() for template in TEMPLATES]
    for tenths in range(round(10 * LEAST), round(10 * GREATEST) + 1):
        if tenths not in HELD_OUT_TENTHS:
            sentences += [Sentence(template.format(phrase), tenths / 10)
                          for phrase in numeric_phrases(tenths) for template in TEMPLATES]
    return sentences


def held_out_sentences() -> list[Sentence]:
    """Sentences of unseen phrases and numbers, in seen templates, and seen ones in unseen."""
    verbal = verbal_phrases()
    sentences = [Sentence(template.format(text), verbal[text])
                 for text in HELD_OUT_PHRASES for template in TEMPLATES]
    sentences += [Sentence(template.format(phrase), tenths / 10) for tenths in HELD_OUT_TENTHS
                  for phrase in numeric_phrases(tenths) for template in TEMPLATES]
    sentences += [Sentence(template.format(text), metres) for text, metres in verbal.items()
                  for template in HELD_OUT_TEMPLATES]
    return sentences


def room_sentences(kind: str) -> list[str]:
    """Ways to say that the picture shows a room of this kind."""
    return [template.format(word) for word in ROOMS[kind] for template in ROOM_TEMPLATES]


class TextTargets:
    """Where each sentence should lie on the unit sphere.

    Distances lie on a curve on which the cosine of two points falls off like a Gaussian of the
    difference of their logarithms: words of near meaning are near, and every depth has a
    direction of its own. Rooms have directions orthogonal to that curve and to each other.
    """

    def __init__(
        self, dimension: int, width: float = 0.45, nodes: int = 20, seed: int = 5,
    ) -> None:
        self.width = width
        self.nodes = np.linspace(math.log(0.3), math.log(13.0), nodes)
        values, vectors = np.linalg.eigh(self._kernel(self.nodes, self.nodes))
        keep = values > 1e-4 * values.max()
        self.basis = vectors[:, keep] / np.sqrt(values[keep])
        size = int(keep.sum()) + len(ROOMS)
        if size > dimension:
            raise ValueError(f'{dimension} dimensions are too few; {size} are needed')
        random = np.random.default_rng(seed).standard_normal((dimension, size))
        self.frame = np.linalg.qr(random)[0]

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * ((a[:, None] - b[None, :]) / self.width) ** 2)

    def distance(self, metres: np.ndarray) -> np.ndarray:
        """(N,) metres -> (N, C) unit vectors."""
        features = self._kernel(np.log(metres), self.nodes) @ self.basis
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return (features @ self.frame[:, :features.shape[1]].T).astype(np.float32)

    def room(self, number: int) -> np.ndarray:
        """(C,) unit vector of a kind of room."""
        return self.frame[:, self.frame.shape[1] - len(ROOMS) + number].astype(np.float32)
