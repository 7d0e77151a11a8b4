from farreach.actors.ratio import RatioController


def test_updates_become_due_with_the_steps_collected():
    ratio = RatioController(updates_per_step=0.1, backlog_steps=1000)
    assert ratio.due == 0
    ratio.request(500)
    ratio.collected(500)
    assert ratio.due == 50
    ratio.hand_out(20)
    assert ratio.due == 30


def test_collection_waits_while_the_learner_is_behind():
    ratio = RatioController(updates_per_step=0.1, backlog_steps=1000)
    for _ in range(2):
        assert ratio.may_collect
        ratio.request(500)
    assert not ratio.may_collect  # 1000 steps are on their way
    ratio.collected(500)
    assert not ratio.may_collect  # ... and count until their updates are handed out
    ratio.hand_out(1)
    assert ratio.may_collect  # 990 steps wait


def test_steps_of_a_dead_actor_do_not_block_collection():
    ratio = RatioController(updates_per_step=1.0, backlog_steps=100)
    ratio.request(100)
    assert not ratio.may_collect
    ratio.lost(100)
    assert ratio.may_collect
    assert ratio.due == 0


def test_the_ratio_holds_whatever_the_number_of_actors():
    for actors in (1, 3, 16):
        ratio = RatioController(updates_per_step=0.06, backlog_steps=(actors + 1) * 3200)
        for _ in range(200):
            flying = 0
            while ratio.may_collect and flying < actors:
                ratio.request(3200)
                flying += 1
            for _ in range(flying):
                ratio.collected(3200)
            ratio.hand_out(ratio.due)
        assert abs(ratio.updates / ratio.steps - 0.06) < 1e-4


def test_steps_without_updates_are_counted_in_either_state():
    ratio = RatioController(updates_per_step=0.5, backlog_steps=1000)
    ratio.request(300)
    ratio.request(200)
    ratio.collected(300)
    assert ratio.waiting_steps == 500
    ratio.hand_out(100)  # pays for 200 steps
    assert ratio.waiting_steps == 300
