"""The update: one step, many steps, the state they leave, and the engines they run on."""
