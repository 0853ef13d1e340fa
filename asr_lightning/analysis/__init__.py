"""What is seen inside recognisers and their training: pure functions, that know no file and no picture."""
