"""The cost model: the predicted time of a plan, out of facts about a processor."""
