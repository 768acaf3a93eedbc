// Programs that a user of a control plane has, each on the current client-go, for the tests of Outrigger:
//
//	informer           a shared informer on a typed client, as generated clients have it
//	dynamic-informer   the same on unstructured objects
//	metadata-informer  the same on metadata alone, as the garbage collector has it
//	retry-watcher      a RetryWatcher from the version of a list
//	controller         a controller-runtime manager: a reconciler with a finalizer that writes the status
//	writer             creates, updates, patches, reads and deletes at a rate
//
// Each says on its standard output, one JSON object a line, what it saw and every error that client-go met, until its
// standard input is closed or it gets a SIGTERM; then it says what its caches hold, and a summary. They know nothing of
// what is right: the tests judge.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// How long a program may take to end after it was told to.
const endTimeout = 20 * time.Second

type options struct {
	kubeconfig string
	namespaces []string
	count      int
	rate       float64
	workers    int
	finalizer  string
}

// A program runs until the context ends.
type program func(ctx context.Context, config *rest.Config, options options, report *reporter) error

var programs = map[string]program{
	"informer":          runInformer,
	"dynamic-informer":  runDynamicInformer,
	"metadata-informer": runMetadataInformer,
	"retry-watcher":     runRetryWatcher,
	"controller":        runController,
	"writer":            runWriter,
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "programs:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || programs[args[0]] == nil {
		return fmt.Errorf("which of informer, dynamic-informer, metadata-informer, retry-watcher, controller, writer?")
	}
	var options options
	var namespaces string
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&options.kubeconfig, "kubeconfig", "", "how the control plane is reached")
	flags.StringVar(&namespaces, "namespaces", "", "the namespaces to work in, with commas; all if it is not given")
	flags.IntVar(&options.count, "count", 1, "how many informers or watchers")
	flags.Float64Var(&options.rate, "rate", 20, "requests of the writer a second")
	flags.IntVar(&options.workers, "workers", 1, "how many write in each namespace")
	flags.StringVar(&options.finalizer, "finalizer", "programs.example.com/controller", "the controller's finalizer")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if namespaces != "" {
		options.namespaces = strings.Split(namespaces, ",")
	}
	config, err := clientcmd.BuildConfigFromFlags("", options.kubeconfig)
	if err != nil {
		return err
	}
	// Limits of the client would hide what the server does.
	config.QPS = -1
	config.UserAgent = "outrigger-tests-" + args[0]

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	go func() {
		// Whoever started us holds the other end.
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()

	report := newReporter(os.Stdout)
	report.hear(ctx)
	config.Wrap(report.transport(ctx))
	done := make(chan error, 1)
	go func() { done <- programs[args[0]](ctx, config, options, report) }()
	select {
	case err = <-done:
	case <-after(ctx, endTimeout):
		err = fmt.Errorf("it did not end within %s", endTimeout)
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
	}
	return errors.Join(err, report.close())
}

// A channel that is closed so long after the end of the context.
func after(ctx context.Context, delay time.Duration) <-chan struct{} {
	late := make(chan struct{})
	go func() {
		<-ctx.Done()
		time.Sleep(delay)
		close(late)
	}()
	return late
}
