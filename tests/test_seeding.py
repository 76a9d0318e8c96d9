from frostline.seeding import derive_seed


def test_a_seed_depends_on_root_and_names_alone():
    assert derive_seed(7, "augment", "cat.jpg", 3) == derive_seed(7, "augment", "cat.jpg", 3)
    seeds = {derive_seed(root, *names) for root in (7, 8) for names in (("a",), ("b",), ("a", "b"), ("b", "a"))}
    assert len(seeds) == 8


def test_names_keep_their_boundaries():
    assert derive_seed(7, "a", "bc") != derive_seed(7, "ab", "c")


def test_seeds_fit_in_31_bits_and_spread_over_them():
    seeds = [derive_seed(7, "trial", number) for number in range(1000)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == 1000
    assert max(seeds) > 0.9 * 2**31 and min(seeds) < 0.1 * 2**31


def test_a_seed_is_the_same_in_every_version():
    # A change of this number would change every split, view and trial of every user.
    assert derive_seed(7, "split") == 365705753
