#include "call_frame.h"

#include <memory>

#include "limits.h"

struct XLA_FFI_Error {
  jax_nano::test::Status status;
};

struct XLA_FFI_ExecutionContext {
  jax_nano::test::Pool* pool;
};

namespace jax_nano::test {
namespace {

XLA_FFI_Error* NewError(XLA_FFI_Error_Code code, const char* message) {
  WorkingNew ours;
  return new XLA_FFI_Error{{code, message}};
}

XLA_FFI_Error* CreateError(XLA_FFI_Error_Create_Args* args) { return NewError(args->errc, args->message); }
void GetMessage(XLA_FFI_Error_GetMessage_Args* args) { args->message = args->error->status.message.c_str(); }
void DestroyError(XLA_FFI_Error_Destroy_Args* args) { delete args->error; }

XLA_FFI_Error* ScheduleTask(XLA_FFI_ThreadPool_Schedule_Args* args) {
  if (!args->ctx->pool) return NewError(XLA_FFI_Error_Code_UNAVAILABLE, "no thread pool");
  WorkingNew ours;
  args->ctx->pool->Schedule([task = args->task, data = args->data] { task(data); });
  return nullptr;
}

XLA_FFI_Error* CountThreads(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  if (!args->ctx->pool) return NewError(XLA_FFI_Error_Code_UNAVAILABLE, "no thread pool");
  *args->num_threads = args->ctx->pool->size();
  return nullptr;
}

XLA_FFI_Api MakeApi() {
  XLA_FFI_Api api = {};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = CreateError;
  api.XLA_FFI_Error_GetMessage = GetMessage;
  api.XLA_FFI_Error_Destroy = DestroyError;
  api.XLA_FFI_ThreadPool_Schedule = ScheduleTask;
  api.XLA_FFI_ThreadPool_NumThreads = CountThreads;
  return api;
}

// A call in the form of the C API. Points into `call`.
class Frame {
 public:
  explicit Frame(const Call& call) : call_(call), context_{call_.pool} {
    for (auto& [name, value] : call_.attributes) Add(name, value);
    for (Array& array : call_.operands) operands_.push_back(Add(array));
    for (Array& array : call_.results) results_.push_back(Add(array));
    operand_types_.assign(operands_.size(), XLA_FFI_ArgType_BUFFER);
    result_types_.assign(results_.size(), XLA_FFI_RetType_BUFFER);
    for (XLA_FFI_ByteSpan& name : names_) name_pointers_.push_back(&name);

    frame_.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
    frame_.api = &api_;
    frame_.ctx = &context_;
    frame_.stage = call_.stage;
    frame_.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, Size(operands_), operand_types_.data(), operands_.data()};
    frame_.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, Size(results_), result_types_.data(), results_.data()};
    frame_.attrs = {XLA_FFI_Attrs_STRUCT_SIZE, nullptr,       Size(types_), types_.data(),
                    name_pointers_.data(),     values_.data()};
  }

  XLA_FFI_CallFrame* get() { return &frame_; }

 private:
  template <typename T>
  static int64_t Size(const std::vector<T>& elements) {
    return static_cast<int64_t>(elements.size());
  }

  void Add(const std::string& name, Attribute& value) {
    names_.push_back({name.data(), name.size()});
    std::visit([this](auto& held) { AddValue(held); }, value);
  }
  void AddValue(int64_t& value) { AddScalar(XLA_FFI_DataType_S64, &value); }
  void AddValue(float& value) { AddScalar(XLA_FFI_DataType_F32, &value); }
  void AddScalar(XLA_FFI_DataType type, void* value) {
    types_.push_back(XLA_FFI_AttrType_SCALAR);
    values_.push_back(&scalars_.emplace_back(XLA_FFI_Scalar{type, value}));
  }
  void AddValue(std::string& value) {
    types_.push_back(XLA_FFI_AttrType_STRING);
    values_.push_back(&strings_.emplace_back(XLA_FFI_ByteSpan{value.data(), value.size()}));
  }
  void AddValue(std::vector<int64_t>& value) {
    types_.push_back(XLA_FFI_AttrType_ARRAY);
    values_.push_back(&arrays_.emplace_back(XLA_FFI_Array{XLA_FFI_DataType_S64, value.size(), value.data()}));
  }

  void* Add(Array& array) {
    return &buffers_.emplace_back(XLA_FFI_Buffer{XLA_FFI_Buffer_STRUCT_SIZE, nullptr, array.type, array.data,
                                                 Size(array.dims), array.dims.data()});
  }

  Call call_;
  const XLA_FFI_Api api_ = MakeApi();
  XLA_FFI_ExecutionContext context_;
  std::deque<XLA_FFI_ByteSpan> names_, strings_;  // whose elements stay where they are
  std::deque<XLA_FFI_Scalar> scalars_;
  std::deque<XLA_FFI_Array> arrays_;
  std::deque<XLA_FFI_Buffer> buffers_;
  std::vector<XLA_FFI_AttrType> types_;
  std::vector<XLA_FFI_ByteSpan*> name_pointers_;
  std::vector<void*> values_, operands_, results_;
  std::vector<XLA_FFI_ArgType> operand_types_;
  std::vector<XLA_FFI_RetType> result_types_;
  XLA_FFI_CallFrame frame_ = {};
};

Status Take(XLA_FFI_Error* error) {
  std::unique_ptr<XLA_FFI_Error> owned(error);
  return owned ? owned->status : Status{};
}

}  // namespace

Status Invoke(XLA_FFI_Handler* handler, const Call& call) noexcept { return Take(handler(Frame(call).get())); }

Status InvokeFailing(XLA_FFI_Handler* handler, const Call& call, int64_t successes, bool* failed) noexcept {
  Frame frame(call);
  XLA_FFI_Error* error;
  {
    FailingNew failing(successes);
    error = handler(frame.get());
    *failed = failing.failed();
  }
  return Take(error);
}

}  // namespace jax_nano::test
