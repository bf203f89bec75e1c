// Finds a call, dispatches it and hands its rows out, in one call from Python; docs/kernels-host.md says why.
#include "slots.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "call.h"
#include "counters.h"

namespace binding {
namespace {

constexpr size_t parts = 3, halves = 2;

struct Ticket {
    Reference session, call, weights;
    uint64_t epoch, total, rows_needed, at_most;
    uint32_t kind, part, slot, tokens, combines;
    char rejoined;
};
static_assert(std::is_standard_layout_v<Object<Ticket>>); // Python reads members of it by their offsets

PyTypeObject *ticket_type = nullptr;

// What of a dispatch is in neither its call nor its tensors.
struct Begun {
    uint32_t kind, part;
    uint64_t begun_ns;
    uint64_t at_most, planned_rows; // of what nobody waited for, whose call does not know what came
    bool first_round;
};

struct Slots {
    Reference session;            // what keeps the windows of the tickets open
    Reference counters;           // Counters
    Reference make_call;          // () -> Call
    Reference rows_type;          // of the five that a dispatch returns
    Reference renew;              // (rows, scales, out) -> the same without history
    std::vector<Reference> views; // [slots][parts]: (rows, scales, out)
    std::vector<Reference> calls;
    std::vector<Reference> holders; // [slots][halves]: the call whose rows lie there, or none
    uint64_t capacity, expert_rows;

    // The first and the last half of a slot that a part takes, among the holders.
    std::array<Reference *, 2> held_by(uint32_t slot, uint32_t part) {
        Reference *first = &holders[slot * halves];
        return {first + (part == EXCHANGE_SECOND_HALF), first + (part != EXCHANGE_FIRST_HALF)};
    }

    // One that holds no rows: those of others have to survive a dispatch that is refused. Null with an exception set.
    PyObject *free_call() {
        for (const Reference &call : calls)
            if (std::none_of(holders.begin(), holders.end(), [&](auto &held) { return held.get() == call.get(); }))
                return call.get();
        Reference made(PyObject_CallNoArgs(make_call.get()));
        if (!made)
            return nullptr;
        calls.push_back(std::move(made));
        return calls.back().get();
    }

    bool holds(const Ticket &ticket) {
        const auto [first, last] = held_by(ticket.slot, ticket.part);
        PyObject *call = ticket.call.get();
        return first->get() == call && last->get() == call &&
               value_of<Call>(call).arguments.combine.epoch == ticket.epoch;
    }

    PyObject *hand_out(PyObject *held, PyObject *weights, const Begun &begun);
    void count_combine(const Ticket &ticket, uint64_t begun_ns, bool waited);
};

bool has_history(PyObject *tensor) {
    if (tensor == Py_None)
        return false;
    static PyObject *const name = PyUnicode_InternFromString("requires_grad");
    const Reference answer(PyObject_GetAttr(tensor, name));
    return answer.get() == Py_True;
}

// The tensors of `view`, which holds three; anew where one was written with a history, for they are handed out again.
bool renew_view(Reference &view, PyObject *renew) {
    for (Py_ssize_t i = 0; i < 3; ++i)
        if (has_history(PyTuple_GetItem(view.get(), i))) {
            Reference renewed(PyObject_CallObject(renew, view.get()));
            if (renewed)
                view = std::move(renewed);
            break;
        }
    return PyErr_Occurred() == nullptr;
}

// Rows that each rank got in the last dispatch; none where that is not known on the host.
std::vector<uint64_t> rows_by_rank(const Call &call) {
    const ExchangeLayout &layout = call.session->layout;
    if (!call.session->takes_host_tensors)
        return {};
    const ExchangeDispatch &dispatch = call.arguments.dispatch;
    if (layout.granting != 0)
        return {dispatch.totals, dispatch.totals + layout.ranks};
    const uint32_t own = layout.experts / layout.ranks;
    std::vector<uint64_t> rows(layout.ranks);
    for (uint32_t source = 0; source < layout.ranks; ++source)
        for (uint32_t expert = 0; expert < layout.experts; ++expert)
            rows[expert / own] += dispatch.matrix[source * layout.experts + expert];
    return rows;
}

// The new ExpertRows of a call that was just dispatched.
PyObject *Slots::hand_out(PyObject *held, PyObject *weights, const Begun &begun) {
    const Call &call = value_of<Call>(held);
    const ExchangeCombine &place = call.arguments.combine;
    for (Reference *half : held_by(place.slot, begun.part))
        *half = Reference::to(held);
    const Reference made = create<Ticket>(ticket_type);
    Reference &view = views[place.slot * parts + begun.part];
    if (!made || !renew_view(view, renew.get()))
        return nullptr;
    auto &ticket = value_of<Ticket>(made.get());
    ticket.session = Reference::to(session.get());
    ticket.call = Reference::to(held);
    ticket.weights = Reference::to(weights);
    ticket.epoch = place.epoch;
    ticket.total = place.total;
    ticket.rows_needed = expert_rows != 0 ? capacity : place.total;
    const bool waited = place.epoch != 0;
    ticket.at_most = waited ? place.total : begun.at_most;
    ticket.kind = begun.kind;
    ticket.part = begun.part;
    ticket.slot = place.slot;
    ticket.tokens = place.tokens;
    auto &counted = value_of<Counters>(counters.get());
    Dispatched ended = {.kind = begun.kind,
                        .begun_ns = begun.begun_ns,
                        .tokens = place.tokens,
                        .rows = waited ? place.total : begun.planned_rows,
                        .largest_rows = 0,
                        .rows_of_all = 0,
                        .first_round = begun.first_round,
                        .waited = waited};
    if (counted.measures_imbalance)
        for (const uint64_t rows : rows_by_rank(call)) {
            ended.largest_rows = std::max(ended.largest_rows, rows);
            ended.rows_of_all += rows;
        }
    counted.dispatched(ended);
    PyObject *tensors = view.get();
    const Reference rows(PyTuple_Pack(5, PyTuple_GetItem(tensors, 0), PyTuple_GetItem(tensors, 1), call.counts.get(),
                                      PyTuple_GetItem(tensors, 2), made.get()));
    const Reference arguments(rows ? PyTuple_Pack(1, rows.get()) : nullptr);
    if (!arguments)
        return nullptr;
    // What its own __new__ does, which is a function in Python.
    const auto make = reinterpret_cast<newfunc>(PyType_GetSlot(&PyTuple_Type, Py_tp_new));
    return make(reinterpret_cast<PyTypeObject *>(rows_type.get()), arguments.get(), nullptr);
}

void Slots::count_combine(const Ticket &ticket, uint64_t begun_ns, bool waited) {
    // The kernels of a device do not say whom they wait for.
    const Session &session_of = *value_of<Call>(ticket.call.get()).session;
    value_of<Counters>(counters.get())
        .combined(ticket.kind, begun_ns, waited, session_of.takes_host_tensors ? &session_of.waited_ns : nullptr);
}

PyObject *make(PyTypeObject *type, PyObject *arguments, PyObject *) {
    PyObject *session, *counters, *make_call, *rows_type, *renew, *views;
    unsigned long long capacity, expert_rows;
    if (!PyArg_ParseTuple(arguments, "OO!OOOO!KK", &session, counters_type, &counters, &make_call, &rows_type, &renew,
                          &PyTuple_Type, &views, &capacity, &expert_rows))
        return nullptr;
    Reference made = create<Slots>(type);
    if (!made)
        return nullptr;
    auto &slots = value_of<Slots>(made.get());
    slots.session = Reference::to(session);
    slots.counters = Reference::to(counters);
    slots.make_call = Reference::to(make_call);
    slots.rows_type = Reference::to(rows_type);
    slots.renew = Reference::to(renew);
    for (Py_ssize_t i = 0; i < PyTuple_Size(views); ++i)
        slots.views.push_back(Reference::to(PyTuple_GetItem(views, i)));
    slots.holders.resize(slots.views.size() / parts * halves);
    slots.capacity = capacity;
    slots.expert_rows = expert_rows;
    return made.release();
}

PyObject *free_call(PyObject *self, PyObject *) { return Reference::to(value_of<Slots>(self).free_call()).release(); }

// The ExchangeKind of a phase, or 0.
uint32_t kind_of(PyObject *phase) {
    if (!PyUnicode_Check(phase))
        return 0;
    if (PyUnicode_CompareWithASCIIString(phase, "decode") == 0)
        return EXCHANGE_DECODE;
    return PyUnicode_CompareWithASCIIString(phase, "prefill") == 0 ? EXCHANGE_PREFILL : 0;
}

// dispatch_fitting(x, ids, weights, phase)
PyObject *dispatch_fitting(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    const uint64_t begun_ns = now_ns();
    if (!expects(4, count))
        return nullptr;
    auto &slots = value_of<Slots>(self);
    const uint32_t kind = kind_of(arguments[3]);
    if (kind == 0)
        Py_RETURN_NONE;
    const Reference held = Reference::to(slots.free_call());
    if (!held)
        return nullptr;
    auto &call = value_of<Call>(held.get());
    if (!call.take_fitting(arguments, {.kind = kind}))
        Py_RETURN_NONE;
    const int result = call.run_dispatch(call.session->functions.dispatch);
    if (result != EXCHANGE_OK || PyErr_Occurred() != nullptr)
        return result_of(result);
    return slots.hand_out(held.get(), arguments[2], {kind, EXCHANGE_WHOLE, begun_ns, 0, 0, true});
}

// hand_out(call, weights, kind, part, begun_ns, at_most, planned_rows, first_round)
PyObject *hand_out(PyObject *self, PyObject *arguments) {
    PyObject *call, *weights;
    Begun begun;
    unsigned long long begun_ns, at_most, planned_rows;
    int first_round;
    if (!PyArg_ParseTuple(arguments, "O!OIIKKKp", call_type, &call, &weights, &begun.kind, &begun.part, &begun_ns,
                          &at_most, &planned_rows, &first_round))
        return nullptr;
    return value_of<Slots>(self).hand_out(call, weights,
                                          {begun.kind, begun.part, begun_ns, at_most, planned_rows, first_round != 0});
}

// combine_fitting(ticket, out)
PyObject *combine_fitting(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    const uint64_t begun_ns = now_ns();
    if (!expects(2, count))
        return nullptr;
    auto &slots = value_of<Slots>(self);
    if (Py_TYPE(arguments[0]) != ticket_type)
        Py_RETURN_NONE;
    auto &ticket = value_of<Ticket>(arguments[0]);
    auto &call = value_of<Call>(ticket.call.get());
    if (ticket.session.get() != slots.session.get() || ticket.combines != 0 || !slots.holds(ticket) ||
        !call.take_fitting_out(arguments[1]))
        Py_RETURN_NONE;
    ticket.combines = 1;
    const int result = call.run_combine(call.session->functions.combine);
    if (result == EXCHANGE_OK)
        slots.count_combine(ticket, begun_ns, true);
    return result_of(result);
}

// combined(ticket, begun_ns, waited)
PyObject *combined(PyObject *self, PyObject *arguments) {
    PyObject *ticket;
    unsigned long long begun_ns;
    int waited;
    if (!PyArg_ParseTuple(arguments, "O!Kp", ticket_type, &ticket, &begun_ns, &waited))
        return nullptr;
    value_of<Slots>(self).count_combine(value_of<Ticket>(ticket), begun_ns, waited != 0);
    Py_RETURN_NONE;
}

// holds(ticket)
PyObject *holds(PyObject *self, PyObject *ticket) {
    if (Py_TYPE(ticket) != ticket_type)
        return PyErr_Format(PyExc_TypeError, "%R is no Ticket", ticket);
    return PyBool_FromLong(value_of<Slots>(self).holds(value_of<Ticket>(ticket)));
}

int traverse_slots(PyObject *self, visitproc visit, void *arg) {
    const Slots &slots = value_of<Slots>(self);
    Py_VISIT(Py_TYPE(self));
    for (const Reference *held : {&slots.session, &slots.counters, &slots.make_call, &slots.rows_type, &slots.renew})
        Py_VISIT(held->get());
    for (const Reference &view : slots.views)
        Py_VISIT(view.get());
    for (const Reference &call : slots.calls)
        Py_VISIT(call.get());
    for (const Reference &call : slots.holders)
        Py_VISIT(call.get());
    return 0;
}

int traverse_ticket(PyObject *self, visitproc visit, void *arg) {
    const Ticket &ticket = value_of<Ticket>(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(ticket.session.get());
    Py_VISIT(ticket.call.get());
    Py_VISIT(ticket.weights.get());
    return 0;
}

bool add_ticket_type(PyObject *module) {
#define MEMBER(name, type, flags)                                                                                      \
    {                                                                                                                  \
        #name, type, offsetof(Object<Ticket>, value.name), flags, nullptr                                              \
    }
    static PyMemberDef members[] = {MEMBER(session, T_OBJECT_EX, READONLY),
                                    MEMBER(call, T_OBJECT_EX, READONLY),
                                    MEMBER(weights, T_OBJECT_EX, READONLY),
                                    MEMBER(epoch, T_ULONGLONG, READONLY),
                                    MEMBER(total, T_ULONGLONG, READONLY),
                                    MEMBER(rows_needed, T_ULONGLONG, READONLY),
                                    MEMBER(at_most, T_ULONGLONG, READONLY),
                                    MEMBER(kind, T_UINT, READONLY),
                                    MEMBER(part, T_UINT, READONLY),
                                    MEMBER(slot, T_UINT, READONLY),
                                    MEMBER(tokens, T_UINT, READONLY),
                                    MEMBER(combines, T_UINT, 0),
                                    MEMBER(rejoined, T_BOOL, 0),
                                    {}};
#undef MEMBER
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, slot(destroy<Ticket>)},
        {Py_tp_traverse, slot(traverse_ticket)},
        {Py_tp_members, members},
        {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Ticket", sizeof(Object<Ticket>), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    return add_type(module, ticket_type, spec);
}

} // namespace

bool add_slots_types(PyObject *module) {
    static PyTypeObject *slots_type = nullptr;
    static PyMethodDef methods[] = {method("free_call", free_call, METH_NOARGS),
                                    method("dispatch_fitting", dispatch_fitting, METH_FASTCALL),
                                    method("hand_out", hand_out, METH_VARARGS),
                                    method("combine_fitting", combine_fitting, METH_FASTCALL),
                                    method("combined", combined, METH_VARARGS),
                                    method("holds", holds, METH_O),
                                    {}};
    static PyType_Slot slots[] = {
        {Py_tp_new, slot(make)},
        {Py_tp_dealloc, slot(destroy<Slots>)},
        {Py_tp_traverse, slot(traverse_slots)},
        {Py_tp_methods, methods},
        {0, nullptr},
    };
    static PyType_Spec spec = {"sglang_ascend_moe._host_kernels.Slots", sizeof(Object<Slots>), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};
    return add_ticket_type(module) && add_type(module, slots_type, spec);
}

} // namespace binding
