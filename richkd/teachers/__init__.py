"""Teachers that students learn from: tables, the one that runs along, the fused one."""
