"""A sweep on more than one machine: on a Ray cluster, or as Jobs on the Hub."""
