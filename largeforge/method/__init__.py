"""What is learnt: losses as LightningModules."""
