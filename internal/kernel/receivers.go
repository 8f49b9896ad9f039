package kernel

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// The kernel reads the replies of each connection in a work item that lives as long
// as the connection. All items of a device are in its workqueue, "nbdN-recv", which
// starts a thread for each; and when a new thread is not there within 10 ms, because
// memory or processor time is short, the queue's rescuer thread takes all items that
// wait, and carries them out one after the other (rescuer_thread in
// kernel/workqueue.c before Linux 7.0; seen with 6.1, not with 6.12.95). As the first
// of them does not end, nobody reads the replies of the other connections, until that
// one is closed:
//
//	connections   0        1        2        3
//	thread        worker   rescuer  rescuer  rescuer
//	replies       read     read     -        -
//
// A request on such a connection is given up after the timeout. And if the connection
// is then replaced, its item, once its turn has come, reads from the new one, beside
// the new one's own. So connections are given to the kernel in a way that leaves none
// without its thread; these functions tell.
//
// A thread that works for a queue has its name at the end of its own since Linux 4.18:
// "kworker/u5:1+nbd7-recv", "nbd7-recv+nbd7-recv" (6.1), "kworker/R-nbd7-recv+nbd7-recv"
// (6.12).

// Receivers is how many connections the kernel is reading replies from; ok is false
// where its threads cannot be seen, as in a container.
func (d Device) Receivers() (n int, ok bool) {
	proc := filepath.Join(d.root, "proc")
	if kthreadd, err := os.ReadFile(filepath.Join(proc, "2/comm")); err != nil || string(kthreadd) != "kthreadd\n" {
		return 0, false
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return 0, false
	}
	for _, e := range entries {
		if c := e.Name()[0]; c < '1' || '9' < c {
			continue
		}
		comm, err := os.ReadFile(filepath.Join(proc, e.Name(), "comm"))
		if err == nil && strings.HasSuffix(string(comm), "+"+d.Name()+"-recv\n") {
			n++
		}
	}
	return n, true
}

// AwaitReceivers returns true when the kernel is reading replies from n connections,
// or when nobody can tell, and false at the end of ctx.
func (d Device) AwaitReceivers(ctx context.Context, n int) bool {
	err := poll(ctx, func() bool {
		got, ok := d.Receivers()
		return got == n || !ok
	})
	return err == nil
}
