#include "counters.h"

#include <cstddef>
#include <numeric>
#include <type_traits>
#include <utility>

namespace binding {

PyTypeObject *counters_type = nullptr;

void Histogram::add(double value, const double *bounds, size_t number) {
    size_t place = 0;
    while (place < number && value > bounds[place])
        ++place;
    counts[place] += 1;
    sum += value;
}

namespace {

struct Bounds {
    const char *name;
    double values[most_bounds];
    size_t number;
};

#define TIMES                                                                                                          \
    {10e-6,   20e-6,    40e-6,    80e-6,    160e-6,   320e-6,    640e-6,    1.28e-3,  2.56e-3,                         \
     5.12e-3, 10.24e-3, 20.48e-3, 40.96e-3, 81.92e-3, 163.84e-3, 327.68e-3, 655.36e-3},                                \
        17
// By Measure.
constexpr Bounds bounds_of[measures] = {
    {"dispatch_seconds", TIMES},
    {"combine_seconds", TIMES},
    {"wait_seconds", TIMES},
    {"rows", {0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144}, 17},
    {"imbalance", {1.05, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256}, 17},
    {"rounds", {1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128}, 11},
};
#undef TIMES

void add(PhaseCounts &counts, Measure measure, double value) {
    counts.histograms[measure].add(value, bounds_of[measure].values, bounds_of[measure].number);
}

double seconds(uint64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-9; }

} // namespace

void Counters::dispatched(const Dispatched &ended) {
    PhaseCounts &counts = of(ended.kind);
    const uint64_t took_ns = now_ns() - ended.begun_ns;
    counts.calls += ended.first_round;
    counts.rounds += 1;
    counts.tokens += ended.tokens;
    counts.rows += ended.rows;
    counts.largest_rows += ended.largest_rows;
    counts.dispatch_ns += took_ns;
    if (!ended.waited)
        return;
    add(counts, dispatch_time, seconds(took_ns));
    add(counts, rows_of_rank, static_cast<double>(ended.rows));
    if (ended.rows_of_all != 0)
        add(counts, imbalance,
            static_cast<double>(ended.largest_rows * ranks) / static_cast<double>(ended.rows_of_all));
}

void Counters::combined(uint32_t kind, uint64_t begun_ns, bool waited, const std::vector<uint64_t> *waits) {
    PhaseCounts &counts = of(kind);
    const uint64_t took_ns = now_ns() - begun_ns;
    counts.combine_ns += took_ns;
    if (waited)
        add(counts, combine_time, seconds(took_ns));
    if (waits == nullptr)
        return;
    const uint64_t total = std::accumulate(waits->begin(), waits->end(), uint64_t{0});
    add(counts, wait_time, seconds(total - std::exchange(waited_ns, total)));
}

void Counters::planned(uint64_t begun_ns, uint64_t rounds) {
    PhaseCounts &counts = of(EXCHANGE_PREFILL);
    counts.dispatch_ns += now_ns() - begun_ns;
    add(counts, rounds_of_call, static_cast<double>(rounds));
}

namespace {

static_assert(std::is_standard_layout_v<Object<Counters>>);

// Counters(ranks)
PyObject *make(PyTypeObject *type, PyObject *arguments, PyObject *) {
    unsigned int ranks;
    if (!PyArg_ParseTuple(arguments, "I", &ranks))
        return nullptr;
    Reference made = create<Counters>(type);
    if (made)
        value_of<Counters>(made.get()).ranks = ranks;
    return made.release();
}

// dispatched(kind, begun_ns, tokens, rows, largest_rows, rows_of_all)
PyObject *dispatched(PyObject *self, PyObject *arguments) {
    unsigned int kind;
    unsigned long long begun_ns, tokens, rows, largest_rows, rows_of_all;
    if (!PyArg_ParseTuple(arguments, "IKKKKK", &kind, &begun_ns, &tokens, &rows, &largest_rows, &rows_of_all))
        return nullptr;
    value_of<Counters>(self).dispatched({kind, begun_ns, tokens, rows, largest_rows, rows_of_all, true, true});
    Py_RETURN_NONE;
}

// planned(begun_ns, rounds)
PyObject *planned(PyObject *self, PyObject *arguments) {
    unsigned long long begun_ns, rounds;
    if (!PyArg_ParseTuple(arguments, "KK", &begun_ns, &rounds))
        return nullptr;
    value_of<Counters>(self).planned(begun_ns, rounds);
    Py_RETURN_NONE;
}

// combined(kind, begun_ns)
PyObject *combined(PyObject *self, PyObject *arguments) {
    unsigned int kind;
    unsigned long long begun_ns;
    if (!PyArg_ParseTuple(arguments, "IK", &kind, &begun_ns))
        return nullptr;
    value_of<Counters>(self).combined(kind, begun_ns, true, nullptr);
    Py_RETURN_NONE;
}

const PhaseCounts *counts_of(PyObject *self, PyObject *kind) {
    const auto wanted = static_cast<uint32_t>(PyLong_AsUnsignedLong(kind));
    return PyErr_Occurred() == nullptr ? &value_of<Counters>(self).of(wanted) : nullptr;
}

// sums(kind)
PyObject *sums(PyObject *self, PyObject *kind) {
    const PhaseCounts *counts = counts_of(self, kind);
    return counts == nullptr ? nullptr
                             : Py_BuildValue("(KKKKKKK)", counts->calls, counts->rounds, counts->tokens, counts->rows,
                                             counts->largest_rows, counts->dispatch_ns, counts->combine_ns);
}

// histograms(kind)
PyObject *histograms(PyObject *self, PyObject *kind) {
    const PhaseCounts *counts = counts_of(self, kind);
    Reference all(counts == nullptr ? nullptr : PyDict_New());
    for (size_t measure = 0; all && measure < measures; ++measure) {
        const Bounds &bounds = bounds_of[measure];
        const Histogram &histogram = counts->histograms[measure];
        Reference limits(PyList_New(0));
        for (size_t i = 0; limits && i < bounds.number; ++i)
            if (!append(limits, Reference(PyFloat_FromDouble(bounds.values[i]))))
                return nullptr;
        Reference numbers = as_list(histogram.counts.data(), bounds.number + 1);
        if (!limits || !numbers)
            return nullptr;
        const Reference entry(Py_BuildValue("(NNd)", limits.release(), numbers.release(), histogram.sum));
        if (!entry || PyDict_SetItemString(all.get(), bounds.name, entry.get()) != 0)
            return nullptr;
    }
    return all.release();
}

PyObject *rounds(PyObject *self, void *) {
    const auto &phases = value_of<Counters>(self).phases;
    return PyLong_FromUnsignedLongLong(phases[0].rounds + phases[1].rounds);
}

} // namespace

bool add_counters_type(PyObject *module) {
    static PyMemberDef members[] = {
        {"measures_imbalance", T_BOOL, offsetof(Object<Counters>, value.measures_imbalance), 0, nullptr}, {}};
    static PyGetSetDef attributes[] = {attribute("rounds", rounds), {}};
    static PyMethodDef methods[] = {
        method("dispatched", dispatched, METH_VARARGS), method("planned", planned, METH_VARARGS),
        method("combined", combined, METH_VARARGS),     method("sums", sums, METH_O),
        method("histograms", histograms, METH_O),       {}};
    static PyType_Slot slots[] = {
        {Py_tp_new, slot(make)},  {Py_tp_dealloc, slot(destroy<Counters>)},
        {Py_tp_members, members}, {Py_tp_getset, attributes},
        {Py_tp_methods, methods}, {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Counters", sizeof(Object<Counters>), 0,
                               Py_TPFLAGS_DEFAULT, slots};
    return add_type(module, counters_type, spec);
}

} // namespace binding
