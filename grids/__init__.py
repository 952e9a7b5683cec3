"""Many runs: which ones, how they are trained at the same time, how they rank."""
