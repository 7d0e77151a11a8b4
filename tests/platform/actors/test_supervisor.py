from farreach.actors.supervisor import RestartPolicy


def test_deaths_within_the_window_add_up_per_role():
    policy = RestartPolicy(max_restarts=2, window_s=100)
    assert policy.allows("rollout-0", 0)
    assert policy.allows("rollout-0", 10)
    assert policy.allows("memory", 11)
    assert not policy.allows("rollout-0", 20)


def test_old_deaths_are_forgotten():
    policy = RestartPolicy(max_restarts=1, window_s=100)
    assert policy.allows("rollout-0", 0)
    assert policy.allows("rollout-0", 101)
    assert not policy.allows("rollout-0", 150)
