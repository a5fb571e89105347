"""Two turns between a user and an assistant, in the markup of the reference model's chat template."""

from __future__ import annotations

from random import Random
from typing import Final

from .item import Item, english
from .words import COLOURS, FOODS, PEOPLE, PLACES, THINGS

END: Final = "<|end|>"


def chat_text(messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    """The messages as the chat template of the reference model writes them."""
    text = "".join(f"<|{message['role']}|>\n{message['content']}{END}\n" for message in messages)
    return text + "<|assistant|>\n" if add_generation_prompt else text


def conversation(rng: Random) -> tuple[list[dict[str, str]], str]:
    """Four messages, user and assistant in turn, and a key. The second question is about the first turn."""
    name, place = rng.choice(PEOPLE), rng.choice(PLACES)
    first, second = rng.sample(THINGS, 2)
    colour, colour2 = rng.sample(COLOURS, 2)
    liked, disliked = rng.sample(FOODS, 2)
    opening, reply, follow_ups = rng.choice(
        (
            (
                f"I am {name}. I have a {colour} {first} and a {colour2} {second}.",
                f"Hello {name}. So you have a {first} and a {second}.",
                (
                    ("What is my name?", f"Your name is {name}."),
                    (f"What colour is my {first}?", f"Your {first} is {colour}."),
                    (f"What colour is my {second}?", f"Your {second} is {colour2}."),
                    (f"Which of my things is {colour}?", f"Your {first} is {colour}."),
                    (f"Which of my things is {colour2}?", f"Your {second} is {colour2}."),
                ),
            ),
            (
                f"My name is {name}. I like {liked}, but I do not like {disliked}.",
                f"Hello {name}. I will bring you some {liked}.",
                (
                    ("What do I like?", f"You like {liked}."),
                    ("What do I not like?", f"You do not like {disliked}."),
                    ("Who am I?", f"You are {name}."),
                ),
            ),
            (
                f"Please bring the {first} to the {place} and the {second} to {name}.",
                f"I bring the {first} to the {place} and the {second} to {name}.",
                (
                    (f"Where is the {first}?", f"The {first} is at the {place}."),
                    (f"Who has the {second}?", f"{name} has the {second}."),
                    ("Say it the other way round.", f"The {second} to {name} and the {first} to the {place}."),
                ),
            ),
        )
    )
    question, answer = rng.choice(follow_ups)
    messages = [
        {"role": "user", "content": english(opening)},
        {"role": "assistant", "content": english(reply)},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return messages, f"{opening} {question}"


def first_turn(rng: Random) -> Item:
    """The assistant's first message. Written, compared as a whole."""
    messages, key = conversation(rng)
    return Item(chat_text(messages[:1], add_generation_prompt=True), messages[1]["content"], key=key)


def second_turn(rng: Random) -> Item:
    """The assistant's second message, which needs the first turn. Written, compared as a whole."""
    messages, key = conversation(rng)
    return Item(chat_text(messages[:3], add_generation_prompt=True), messages[3]["content"], key=key)
