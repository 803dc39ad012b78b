#include "lower.h"

#include <string>

#include "llvm/IR/IRBuilder.h"
#include "llvm/Support/raw_ostream.h"
#include "mlir/Conversion/ArithToLLVM/ArithToLLVM.h"
#include "mlir/Conversion/ControlFlowToLLVM/ControlFlowToLLVM.h"
#include "mlir/Conversion/FuncToLLVM/ConvertFuncToLLVM.h"
#include "mlir/Conversion/LLVMCommon/ConversionTarget.h"
#include "mlir/Conversion/LLVMCommon/TypeConverter.h"
#include "mlir/Conversion/MathToLLVM/MathToLLVM.h"
#include "mlir/Conversion/MemRefToLLVM/MemRefToLLVM.h"
#include "mlir/Conversion/SCFToControlFlow/SCFToControlFlow.h"
#include "mlir/Conversion/UBToLLVM/UBToLLVM.h"
#include "mlir/Conversion/VectorToLLVM/ConvertVectorToLLVM.h"
#include "mlir/Dialect/AMX/AMXDialect.h"
#include "mlir/Dialect/AMX/Transforms.h"
#include "mlir/Dialect/Arith/IR/Arith.h"
#include "mlir/Dialect/ControlFlow/IR/ControlFlow.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/Dialect/LLVMIR/LLVMDialect.h"
#include "mlir/Dialect/Math/IR/Math.h"
#include "mlir/Dialect/MemRef/IR/MemRef.h"
#include "mlir/Dialect/SCF/IR/SCF.h"
#include "mlir/Dialect/UB/IR/UBOps.h"
#include "mlir/Dialect/Vector/IR/VectorOps.h"
#include "mlir/Dialect/Vector/Transforms/LoweringPatterns.h"
#include "mlir/Dialect/Vector/Transforms/VectorRewritePatterns.h"
#include "mlir/Dialect/X86Vector/Transforms.h"
#include "mlir/Dialect/X86Vector/X86VectorDialect.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "mlir/Parser/Parser.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h"
#include "mlir/Target/LLVMIR/Export.h"
#include "mlir/Transforms/DialectConversion.h"
#include "mlir/Transforms/Passes.h"

namespace jax_nano {
namespace {

// Every pass, dialect and interface is named: MLIR's functions that register all of them would link all of MLIR.
const mlir::DialectRegistry& Registry() {
  static const mlir::DialectRegistry* registry = [] {
    auto* dialects = new mlir::DialectRegistry;
    dialects->insert<mlir::amx::AMXDialect, mlir::arith::ArithDialect, mlir::cf::ControlFlowDialect,
                     mlir::func::FuncDialect, mlir::LLVM::LLVMDialect, mlir::math::MathDialect,
                     mlir::memref::MemRefDialect, mlir::scf::SCFDialect, mlir::ub::UBDialect,
                     mlir::vector::VectorDialect, mlir::x86vector::X86VectorDialect>();
    mlir::registerBuiltinDialectTranslation(*dialects);
    mlir::registerLLVMDialectTranslation(*dialects);
    return dialects;
  }();
  return *registry;
}

void AddPasses(mlir::PassManager& passes) {
  passes.addPass(mlir::createCanonicalizerPass());
  passes.addPass(mlir::createCSEPass());
  passes.addPass(mlir::createLoopInvariantCodeMotionPass());
  passes.addPass(mlir::createSCFToControlFlowPass());
}

// All dialects in one conversion, since each would walk the whole module, and since branches carry tiles, which no
// single dialect's conversion knows. Loops have become branches before: MLIR 22 cannot convert them along with
// functions.
llvm::LogicalResult ConvertToLLVMDialect(mlir::ModuleOp module) {
  mlir::MLIRContext& context = *module.getContext();
  mlir::LowerToLLVMOptions options(&context);
  options.useBarePtrCallConv = true;
  mlir::LLVMTypeConverter converter(&context, options);
  mlir::RewritePatternSet patterns(&context);
  mlir::vector::populateVectorMaskOpLoweringPatterns(patterns);
  mlir::vector::populateVectorMaskMaterializationPatterns(patterns, /*force32BitVectorIndices=*/true);
  mlir::vector::populateVectorStepLoweringPatterns(patterns);
  mlir::arith::populateArithToLLVMConversionPatterns(converter, patterns);
  mlir::cf::populateControlFlowToLLVMConversionPatterns(converter, patterns);
  mlir::populateFinalizeMemRefToLLVMConversionPatterns(converter, patterns);
  mlir::populateFuncToLLVMConversionPatterns(converter, patterns);
  mlir::populateMathToLLVMConversionPatterns(converter, patterns);
  mlir::populateVectorToLLVMConversionPatterns(converter, patterns, /*reassociateFPReductions=*/false,
                                               /*force32BitVectorIndices=*/true);
  mlir::populateX86VectorLegalizeForLLVMExportPatterns(converter, patterns);
  mlir::populateAMXLegalizeForLLVMExportPatterns(converter, patterns);
  mlir::ub::populateUBToLLVMConversionPatterns(converter, patterns);

  mlir::LLVMConversionTarget target(context);
  target.addLegalOp<mlir::ModuleOp>();
  mlir::configureX86VectorLegalizeForExportTarget(target);
  mlir::configureAMXLegalizeForExportTarget(target);
  return mlir::applyFullConversion(module, target, std::move(patterns));
}

// name(round, task, shared, local, b0, b1, ...) becomes name(round, task, shared, local, buffers).
void ExportEntry(llvm::Function& body) {
  llvm::LLVMContext& context = body.getContext();
  llvm::Type* word = llvm::Type::getInt64Ty(context);
  llvm::Type* pointer = llvm::PointerType::getUnqual(context);
  auto* type = llvm::FunctionType::get(llvm::Type::getVoidTy(context), {word, word, pointer, pointer, pointer},
                                       /*isVarArg=*/false);
  auto* entry = llvm::Function::Create(type, llvm::GlobalValue::ExternalLinkage, "", body.getParent());
  entry->takeName(&body);
  entry->splice(entry->begin(), &body);
  llvm::IRBuilder<> builder(&entry->getEntryBlock(), entry->getEntryBlock().begin());
  for (unsigned i = 0; i < body.arg_size(); ++i) {
    llvm::Value* argument =
        i < 4 ? static_cast<llvm::Value*>(entry->getArg(i))
              : builder.CreateLoad(pointer, builder.CreateConstGEP1_64(pointer, entry->getArg(4), i - 4));
    body.getArg(i)->replaceAllUsesWith(argument);
  }
  body.eraseFromParent();
}

}  // namespace

llvm::Expected<std::unique_ptr<llvm::Module>> Lower(std::string_view text, llvm::LLVMContext& context) {
  mlir::MLIRContext mlir_context(Registry(), mlir::MLIRContext::Threading::DISABLED);
  std::string diagnostics;
  mlir::ScopedDiagnosticHandler handler(&mlir_context, [&](mlir::Diagnostic& diagnostic) {
    llvm::raw_string_ostream(diagnostics) << diagnostic.getLocation() << ": " << diagnostic << "\n";
    return mlir::success();
  });
  auto failure = [&](const char* step) { return llvm::createStringError("%s failed:\n%s", step, diagnostics.c_str()); };

  auto module = mlir::parseSourceString<mlir::ModuleOp>(text, &mlir_context);
  if (!module) return failure("parsing the MLIR module");
  mlir::PassManager passes(&mlir_context);
  passes.enableVerifier(false);  // Parsing verifies the module, and translation the LLVM IR that it becomes.
  AddPasses(passes);
  if (failed(passes.run(*module)) || failed(ConvertToLLVMDialect(*module)))
    return failure("lowering to the LLVM dialect");
  auto llvm_module = mlir::translateModuleToLLVMIR(*module, context, "jax_nano");
  if (!llvm_module) return failure("translating to LLVM IR");

  llvm::SmallVector<llvm::Function*> entries;
  for (llvm::Function& function : *llvm_module)
    if (!function.isDeclaration() && function.hasExternalLinkage()) entries.push_back(&function);
  for (llvm::Function* function : entries) ExportEntry(*function);
  return llvm_module;
}

}  // namespace jax_nano
