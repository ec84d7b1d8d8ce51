"""Search over what is quantised: what each layer costs, and which layers to give back for a budget."""
