; SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
;
; The static constructors of statics.cpp for LLJIT's platform that knows IR only. Pointers have types, as all
; LLVM versions read them.

@llvm.global_ctors = appending global [1 x { i32, void ()*, i8* }]
  [{ i32, void ()*, i8* } { i32 65535, void ()* @construct, i8* null }]
@__dso_handle = external hidden global i8
@First = internal global i32 0
@Second = internal global i32 0

declare void @hostNote(i32)
declare i32 @__cxa_atexit(void (i8*)*, i8*, i8*)

define internal void @construct() {
  call void @create(i32* @First, i32 1)
  call void @create(i32* @Second, i32 2)
  ret void
}

define internal void @create(i32* %object, i32 %id) {
  store i32 %id, i32* %object
  call void @hostNote(i32 %id)
  %passed = bitcast i32* %object to i8*
  call i32 @__cxa_atexit(void (i8*)* @destroy, i8* %passed, i8* @__dso_handle)
  ret void
}

define internal void @destroy(i8* %passed) {
  %object = bitcast i8* %passed to i32*
  %id = load i32, i32* %object
  %negative = sub i32 0, %id
  call void @hostNote(i32 %negative)
  ret void
}

define i32 @sumOfStatics() {
  %first = load i32, i32* @First
  %second = load i32, i32* @Second
  %sum = add i32 %first, %second
  ret i32 %sum
}
