"""`ascend-moe monitoring`: a dashboard for Grafana, rules and a configuration for Prometheus."""
