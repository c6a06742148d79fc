// Package cgroups knows where the cgroups of pods and containers are, changes their limits, reads their statistics, and
// ends and removes what is in them.
//
// It never puts a process into a cgroup: libcontainer does, with the path that [Host.ContainerPath] gives. From then on
// this package is the only writer of limits. It remembers nothing that the kernel knows: a [Group] is a name, good before
// the cgroup is made and after it is gone, so a restarted daemon opens the same path and goes on.
//
// cgroup v2 is what it is made for: one directory, one atomic kill, events instead of polls. A v1 node, hybrid or not,
// works with what v1 has; where that is less (a fork bomb is killed by freezing it, emptiness is asked for again and
// again) the comments say so.
package cgroups
