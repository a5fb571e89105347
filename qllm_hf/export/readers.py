"""stub"""
from typing import NamedTuple
class Reading(NamedTuple):
    works: bool
def check_readers(stored, groups, reader):
    return {}
