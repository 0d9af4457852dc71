import mimoformer


def test_package_has_a_version():
    assert mimoformer.__version__.count(".") == 2
