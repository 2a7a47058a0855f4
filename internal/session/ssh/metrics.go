package ssh

import "github.com/prometheus/client_golang/prometheus"

// metrics are the few numbers that tell how the service does.
type metrics struct {
	sessions prometheus.Gauge
	refused  *prometheus.CounterVec // connections, by reason
	acts     *prometheus.CounterVec // by act and outcome
	bytes    *prometheus.CounterVec // by direction
	held     prometheus.Gauge
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_ssh_sessions", Help: "SSH sessions that are open."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_ssh_refused_connections_total", Help: "Connections that got no session, by reason."}, []string{"reason"}),
		acts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_ssh_acts_total", Help: "Acts judged, by kind and outcome."}, []string{"act", "outcome"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chaperone_ssh_bytes_total", Help: "Bytes passed on, by direction."}, []string{"direction"}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "chaperone_ssh_held_acts", Help: "Acts that wait for a reviewer now."}),
	}
	if registry == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.sessions, m.refused, m.acts, m.bytes, m.held} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
