package cri

import "github.com/berth-node/berth/runtime"

var networkMetrics = []metric{
	network("container_network_receive_bytes_total", "Cumulative count of bytes received",
		func(i runtime.InterfaceStats) uint64 { return i.RxBytes }),
	network("container_network_receive_packets_total", "Cumulative count of packets received",
		func(i runtime.InterfaceStats) uint64 { return i.RxPackets }),
	network("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving",
		func(i runtime.InterfaceStats) uint64 { return i.RxDropped }),
	network("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving",
		func(i runtime.InterfaceStats) uint64 { return i.RxErrors }),
	network("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted",
		func(i runtime.InterfaceStats) uint64 { return i.TxBytes }),
	network("container_network_transmit_packets_total", "Cumulative count of packets transmitted",
		func(i runtime.InterfaceStats) uint64 { return i.TxPackets }),
	network("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting",
		func(i runtime.InterfaceStats) uint64 { return i.TxDropped }),
	network("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting",
		func(i runtime.InterfaceStats) uint64 { return i.TxErrors }),
}

func network(name, help string, read func(runtime.InterfaceStats) uint64) metric {
	return metric{
		name: name, help: help, kind: counter, extra: []string{"interface"},
		values: func(s *sample) []value {
			var out []value
			for _, i := range s.interfaces {
				out = append(out, value{n: read(i), labels: []string{i.Name}})
			}
			return out
		},
	}
}
