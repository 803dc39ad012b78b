#include "codegen.h"

#include <memory>

#include "llvm/IR/DiagnosticInfo.h"
#include "llvm/IR/DiagnosticPrinter.h"
#include "llvm/IR/LLVMContext.h"
#include "llvm/IR/LegacyPassManager.h"
#include "llvm/MC/TargetRegistry.h"
#include "llvm/Passes/PassBuilder.h"
#include "llvm/Support/raw_ostream.h"
#include "llvm/TargetParser/Host.h"
#include "processor.h"

namespace jax_nano {
namespace {

// Kernels come with their loops already blocked, unrolled and vectorized, and without memory of their own: these passes
// of LLVM's O2 pipeline, in its order, are what makes their code better. tests/codegen/test_assembly.py and
// test_tile_assembly.py fail without ipsccp, correlated-propagation, reassociate or vector-combine: blocks spill.
constexpr const char* kPasses =
    "function(early-cse),ipsccp,function(instcombine<no-verify-fixpoint>,correlated-propagation,"
    "instcombine<no-verify-fixpoint>,reassociate,loop-mssa(loop-rotate,licm),instcombine<no-verify-fixpoint>,"
    "loop(indvars),vector-combine,early-cse<memssa>,sccp,correlated-propagation,simplifycfg,"
    "instcombine<no-verify-fixpoint>,loop-mssa(licm))";

// Collects errors of code generation: without it, LLVM prints them and ends the process.
class Errors : public llvm::DiagnosticHandler {
 public:
  explicit Errors(std::string& text) : text_(text) {}

  bool handleDiagnostics(const llvm::DiagnosticInfo& diagnostic) override {
    if (diagnostic.getSeverity() != llvm::DS_Error) return true;
    llvm::raw_string_ostream stream(text_);
    llvm::DiagnosticPrinterRawOStream printer(stream);
    diagnostic.print(printer);
    stream << "\n";
    return true;
  }

 private:
  std::string& text_;
};

}  // namespace

llvm::Expected<std::unique_ptr<llvm::TargetMachine>> TargetMachineOf(const Processor& processor) {
  InitializeCodeGenerator();
  llvm::Triple triple(llvm::sys::getProcessTriple());
  std::string error;
  const llvm::Target* target = llvm::TargetRegistry::lookupTarget(triple, error);
  if (!target) return llvm::createStringError("no LLVM target for %s: %s", triple.str().c_str(), error.c_str());
  llvm::TargetOptions options;
  options.LoopAlignment = 64;  // a cache line: else a loop's speed hangs on where it happens to begin
  std::unique_ptr<llvm::TargetMachine> machine(
      target->createTargetMachine(triple, processor.cpu, processor.features, options, llvm::Reloc::PIC_,
                                  llvm::CodeModel::Small, llvm::CodeGenOptLevel::Aggressive));
  if (!machine) return llvm::createStringError("LLVM knows no processor %s", processor.cpu.c_str());
  return machine;
}

llvm::Error Optimize(llvm::Module& module, const Processor& processor, llvm::TargetMachine& machine) {
  module.setDataLayout(machine.createDataLayout());
  module.setTargetTriple(machine.getTargetTriple());
  for (llvm::Function& function : module) {
    if (function.isDeclaration()) continue;
    function.addFnAttr("target-cpu", processor.cpu);
    function.addFnAttr("target-features", processor.features);
    function.addFnAttr("tune-cpu", processor.tune);
    function.addFnAttr("prefer-vector-width", "512");
    function.addFnAttr(llvm::Attribute::NoUnwind);
    // Else loops that fill or copy become calls of memset and memcpy, which are beyond the reach of 32-bit offsets.
    function.addFnAttr("no-builtins");
  }
  llvm::LoopAnalysisManager loops;
  llvm::FunctionAnalysisManager functions;
  llvm::CGSCCAnalysisManager components;
  llvm::ModuleAnalysisManager modules;
  llvm::PassBuilder builder(&machine);
  builder.registerModuleAnalyses(modules);
  builder.registerCGSCCAnalyses(components);
  builder.registerFunctionAnalyses(functions);
  builder.registerLoopAnalyses(loops);
  builder.crossRegisterProxies(loops, functions, components, modules);
  llvm::ModulePassManager passes;
  if (auto error = builder.parsePassPipeline(passes, kPasses)) return error;
  passes.run(module, modules);
  return llvm::Error::success();
}

llvm::Expected<std::string> Emit(llvm::Module& module, llvm::TargetMachine& machine, Output output) {
  llvm::SmallVector<char, 0> code;
  llvm::raw_svector_ostream stream(code);
  llvm::legacy::PassManager passes;
  auto kind = output == Output::kObject ? llvm::CodeGenFileType::ObjectFile : llvm::CodeGenFileType::AssemblyFile;
  if (machine.addPassesToEmitFile(passes, stream, nullptr, kind))
    return llvm::createStringError("LLVM cannot emit code for %s", machine.getTargetCPU().str().c_str());
  std::string errors;
  module.getContext().setDiagnosticHandler(std::make_unique<Errors>(errors));
  passes.run(module);
  module.getContext().setDiagnosticHandler(nullptr);
  if (!errors.empty()) return llvm::createStringError("generating code failed:\n" + errors);
  return std::string(code.begin(), code.end());
}

}  // namespace jax_nano
