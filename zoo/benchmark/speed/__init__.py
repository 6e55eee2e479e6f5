"""The time of fits, steps, EM and everything else a user waits for, against a yardstick in the same process."""
