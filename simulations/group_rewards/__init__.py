"""The group-reward experiment: whom a policy serves when groups that disagree reward it together."""
