package parser

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	seconds prometheus.Histogram
	workers prometheus.Gauge
	lost    prometheus.Counter
	refused prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (metrics, error) {
	m := metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "chaperone_sql_parse_seconds", Help: "Time to parse a statement in a worker.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 15),
		}),
		workers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_sql_parser_workers", Help: "Parser workers that are warm or at work.",
		}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_sql_parser_workers_lost_total", Help: "Parser workers killed for a crash, a deadline or a wrong answer.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "chaperone_sql_parser_queue_full_total", Help: "Statements refused because too many were waiting.",
		}),
	}
	if r == nil {
		return m, nil
	}
	return m, errors.Join(r.Register(m.seconds), r.Register(m.workers), r.Register(m.lost), r.Register(m.refused))
}
