"""Windows: where rows lie (`layout`) and how they are mapped (`host`, or `pooled` on Ascend devices)."""
