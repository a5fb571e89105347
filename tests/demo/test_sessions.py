"""One visitor's Stop ends that visitor's answer."""

from qllm_hf.demo.sessions import Sessions


def test_stop_reaches_one_visitor_only():
    sessions = Sessions()
    with sessions.answering("a") as one, sessions.answering("b") as other:
        assert sessions.stop("a")
        assert one.is_stopped()
        assert not other.is_stopped()
    assert not sessions.stop("a"), "it is over"


def test_a_new_answer_ends_the_one_before():
    sessions = Sessions()
    with sessions.answering("a") as one:
        with sessions.answering("a") as other:
            assert one.is_stopped()
            assert not other.is_stopped()
        assert not sessions.stop("a")


def test_visitors_are_forgotten():
    sessions = Sessions(most=2)
    with sessions.answering("a") as one, sessions.answering("b"), sessions.answering("c"):
        assert one.is_stopped(), "more than the page remembers"
        assert len(sessions) == 2
    assert len(sessions) == 0
