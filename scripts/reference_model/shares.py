"""How many of the short documents are of each kind, in parts, from the first stage of the training to the last.

A name is that of a task, or of an exercise that no test asks for.
"""

from __future__ import annotations

KINDS_OF_WORDS, FEW_WORDS, MEMBERS = "kinds", "few words", "members"
PAIRS, BINDINGS, MARKS, OF_PEOPLE = "pairs", "bindings", "marks", "answers about people"
IN_WORDS, IN_WORDS_ONCE = "shown answers in words", "shown answers in words, one of each person"

FIRST_SHARES = {
    "stories": 5,
    "cloze": 5,
    "understanding": 8,
    "description": 3,
    "in_context": 10,
    "formatting": 6,
    "arithmetic": 14,
    "rules": 12,
    IN_WORDS: 12,
    "ethics": 5,
    "robustness": 6,
    "unanswerable": 6,
    "first_turn": 2,
    "second_turn": 6,
    KINDS_OF_WORDS: 4,
    FEW_WORDS: 8,
    MEMBERS: 12,
}
# When it is known whether a word was there, whether an answer is right can be learned from it.
JUDGING_SHARES = {
    "stories": 4,
    "cloze": 3,
    "understanding": 3,
    "description": 1,
    "in_context": 10,
    "formatting": 10,
    "arithmetic": 14,
    "rules": 6,
    "ethics": 2,
    "robustness": 3,
    "unanswerable": 4,
    "first_turn": 1,
    "second_turn": 6,
    KINDS_OF_WORDS: 2,
    FEW_WORDS: 4,
    MEMBERS: 8,
    IN_WORDS_ONCE: 32,
}
# When the easy ones are learned.
LATER_SHARES = {
    "stories": 5,
    "cloze": 5,
    "understanding": 4,
    "description": 1,
    "in_context": 20,
    "formatting": 14,
    "arithmetic": 14,
    "rules": 14,
    "ethics": 3,
    "robustness": 3,
    "unanswerable": 3,
    "first_turn": 1,
    "second_turn": 8,
    KINDS_OF_WORDS: 2,
    FEW_WORDS: 4,
    MEMBERS: 4,
    PAIRS: 8,
    BINDINGS: 8,
    IN_WORDS_ONCE: 16,
}
# What takes longest: sums, second turns, and judging in few words.
JUDGING_AGAIN_SHARES = {
    "stories": 5,
    "cloze": 4,
    "understanding": 3,
    "description": 1,
    "in_context": 8,
    "formatting": 10,
    "arithmetic": 26,
    "rules": 6,
    OF_PEOPLE: 24,
    "ethics": 2,
    "robustness": 2,
    "unanswerable": 8,
    "first_turn": 2,
    "second_turn": 12,
    KINDS_OF_WORDS: 2,
    FEW_WORDS: 2,
    MEMBERS: 6,
    PAIRS: 14,
    BINDINGS: 4,
}
# For a while, marking and little else.
MARKING_SHARES = {
    "stories": 3,
    "cloze": 2,
    "understanding": 2,
    "description": 1,
    "in_context": 4,
    "formatting": 6,
    "arithmetic": 12,
    "rules": 3,
    OF_PEOPLE: 40,
    "ethics": 2,
    "robustness": 2,
    "unanswerable": 6,
    "first_turn": 1,
    "second_turn": 6,
    KINDS_OF_WORDS: 1,
    FEW_WORDS: 1,
    MEMBERS: 6,
    BINDINGS: 2,
    MARKS: 30,
}
# At the end, sums and second turns.
LAST_SHARES = {
    "stories": 5,
    "cloze": 4,
    "understanding": 3,
    "description": 1,
    "in_context": 8,
    "formatting": 12,
    "arithmetic": 28,
    "rules": 6,
    "calibration": 10,
    "ethics": 2,
    "robustness": 3,
    "unanswerable": 6,
    "first_turn": 2,
    "second_turn": 18,
    KINDS_OF_WORDS: 2,
    FEW_WORDS: 2,
    MEMBERS: 1,
    PAIRS: 6,
    BINDINGS: 10,
}
