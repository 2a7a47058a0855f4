package kube

import "github.com/prometheus/client_golang/prometheus"

// metrics are the few numbers that tell how the service does.
type metrics struct {
	open  prometheus.Gauge
	flows *prometheus.CounterVec // by outcome
	bytes *prometheus.CounterVec // by direction
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_kube_streams", Help: "exec, attach and port-forward under way."}),
		flows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_kube_streams_total", Help: "exec, attach and port-forward, by outcome."}, []string{"outcome"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_kube_stream_bytes_total", Help: "Bytes passed on in them, by direction."}, []string{"direction"}),
	}
	if registry == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.open, m.flows, m.bytes} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
