"""Many runs: what there is to do, starting it, and how it stands."""
